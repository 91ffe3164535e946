"""Types that describe a model to the framework: graph, stages, options, memory needs, flags, routes, plans.

The package `stages` implements these types, and the other packages use them. Nothing here runs a stage, decides
on a device or reads a configuration.
"""
