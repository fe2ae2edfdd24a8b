"""Serving: an engine that batches rows by tokens and waiting time, the HTTP routes before it, and what watches it.

A request's way, from the outside in:

- `connections`: how many may be open, how long and large the head of a request may be
- `limits`: the bearer token, the size of bodies, the time to send one
- `tracing`: a span for each request, where they are asked for
- `app`: the routes behind the limits, errors as JSON
- `routes`, `layers`, `page`: what is answered where
- `bodies`, `answers`: what comes in and what goes out, as clients expect it
- `service`: from a body to its answers
- `calls`: what goes through the engine, and who is asked on the way
- `outcomes`: how a request ends that is not answered
- `engine`: the thread that runs batches
- `batching`: which rows run together, and under which point
- `ladder`, `controller`: the certified points, and which of them answers now
- `predictors`: models as the engine asks them
- `models`: those that are served, by name
- `meter`, `watching`: what is counted, and whether certificates hold
- `start`: from a folder to a server
- `ray`, `cluster`: the same server in many processes, and what these need
"""
