"""What a model must bring, as types: the stage graph, the stage protocol, options, memory needs, flags, routes, plans.

Both sides meet here: `stages` implements these types, and the other rooms use them. Nothing here runs a stage, decides
on a device or reads a configuration.
"""
