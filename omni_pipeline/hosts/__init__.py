"""Adds other hosts to a service: the messages with which a host joins, and the agent that runs the host's workers.

- `invitation`: the text that lets a host join once
- `joining`: the messages of the join
- `checkpoint_digest`: compares the checkpoints of two hosts
- `cluster`: the main process's side of the join
- `agent`: the process on another host

With Ray, which starts the agents:

- `ray_hosts`: the main process's side
- `ray_driver`: the process that uses Ray for the main process
- `ray_messages`: the messages between the main process and the driver
- `ray_probe`: finds out whether a cluster accepts clients without a token
- `ray_keeper`: the Ray actor that starts and ends an agent
"""
