"""Answers about the network: who reaches whom, by real packets; which addresses a cluster needs.

`probes` sends packets from inside pods, `reach` turns a cluster into a list of probes and their
results into one matrix, `render` prints it, `plan` computes address plans. Everything but
`probes` and the one asynchronous function of `live` is pure.
"""
