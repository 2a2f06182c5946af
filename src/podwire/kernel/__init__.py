"""The only room with effects on the kernel.

What a caller holds is either a *value* (`requests`: what should be, pure and printable) or a handle
bound to one network namespace (`rtnl.Rtnl`, `nft.Nft`), opened there and usable from anywhere
afterwards. Every effect first asks `guard` whether it is about to happen in the namespace podwire
was started in, and refuses.

    requests (values) -> encode (bytes) -> rtnl (one sendmsg); fake: the same, in memory
    text              -> nft            sysctl, tc, netns, proc: small direct calls
"""
