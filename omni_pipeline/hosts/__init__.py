"""Other hosts: how a host joins the service, and the agent that runs the workers of a host.

- `invitation`: the text that lets a host join once
- `joining`: the messages of the join
- `checkpoint_digest`: compares the checkpoints of two hosts
- `cluster`: the main process's side of the join
- `agent`: the process on another host

With Ray, which starts the agents:

- `ray_hosts`: the main process's side
- `ray_driver`: the process that talks to Ray for the main process
- `ray_messages`: the messages between these two
- `ray_probe`: finds out whether a cluster accepts everyone
- `ray_keeper`: the Ray actor that keeps an agent
"""
