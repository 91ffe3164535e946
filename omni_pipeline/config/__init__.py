"""Defines and reads the settings that an operator can change: schema, flags, layers, layout files.

The JSON schema of the configuration and the choice of the destination of traces belong in this package too. Decisions
that follow from the settings, such as which GPU a stage gets, belong in `deployment`. Commands that show or check a
configuration belong in `commands`.
"""
