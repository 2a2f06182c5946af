"""NetworkPolicy and ClusterNetworkPolicy: their meaning, their form in the kernel, their analysis.

objects -> parse -> Policy -> evaluate -> Decision            (the meaning; see `evaluate`)
                           -> Partition -> compile -> nftables (enforcement)
                                        -> reach               (everybody to everybody)
"""
