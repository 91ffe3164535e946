"""Defines what an operator can set, and reads the settings: schema, flags, layers, layout files.

The JSON schema of the configuration and the choice of where traces go belong here too. Decisions that follow from the
settings, such as which GPU a stage gets, belong in `deployment`. Commands that show or check a configuration belong in
`commands`.
"""
