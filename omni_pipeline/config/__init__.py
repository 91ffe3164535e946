"""What an operator can set, and how it is read: schema, flags, layers, layout files.

Also here: the JSON schema of the configuration, and where traces go. What follows from the settings, such as which GPU
a stage gets, belongs in `deployment`. Commands that show or check a configuration belong in `commands`.
"""
