"""Simulates a deployment on a virtual clock, and predicts its throughput and its latencies.

The workers, their GPUs, the replicas and the hosts are those of a resolved deployment. A worker has one loop, whose
stages take turns. The simulated stages are part of the model's code, and the graph contains their path (see
`contract.simulation`). This package contains nothing about a model.

- `clock`: the events in the order of their times.
- `site`: which process runs which stages, on which GPUs of which host.
- `worker`: the loop of a worker.
- `network`: the time of messages between processes and hosts.
- `load`: when clients send requests.
- `run`: one simulation, from its parts to its results.
- `results`: the predicted values.
- `capacity`: the search for the gapless capacity.
- `changes`: deployments with one more GPU or one more replica.
- `report`: all predictions as data.
- `law_files`: laws from files and from metrics pages.
"""
