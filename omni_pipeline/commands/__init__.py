"""The subcommands `config` and `plan`, the options that all subcommands share, and the display of a start.

Parsing options and drawing results belongs here. The decisions behind the results belong in `config` and `deployment`.
"""
