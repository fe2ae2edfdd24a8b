"""Traffic: when requests arrive, what they would do to a server, simulated, and what they do to a real one.

- `traces`: when requests arrive, and which text each asks
- `runs`: what became of them, in numbers
- `batch_times`: what a batch takes
- `forecast`: what a simulation needs to know of a model and its texts
- `simulator`: arrivals, queues and batches, event by event
- `sizing`: how much a core carries, and what a trace would do
- `load`: the same traffic sent to a real server
- `side_by_side`: both beside each other
- `rivals`: the stock classifier behind the same server
"""
