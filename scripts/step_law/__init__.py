"""Serves a tiny model at the speed of a large model on GPUs. Each step takes the time that a *law* gives for a step of
the large model.

Only the networks are smaller than in a real deployment: they are the networks of a tiny checkpoint. Everything else is
the server's own code: the gateway, the workers, the messages, SGLang's schedulers, and the code that decides the order
of the work. A step computes its results, and then sleeps. The law gives the total time of the step. Each GPU is
represented by a lock. A step holds the lock of its GPU, so two steps on one GPU never run at the same time, even in two
processes. So a CPU with two cores shows in which order the server would do the work on GPUs.

- `laws`: the times of the steps, and their sources.
- `gpu`: the lock.
- `stages`: the stages of Qwen3-Omni, with steps that take the time of the law.
- `graph`: the stage graph with these stages: `--set graph=step_law.graph:STEP_LAW`, with this folder's parent on
  ``PYTHONPATH``.

`scripts/measure_step_law.py` measures the gapless capacity with these stages.
"""
