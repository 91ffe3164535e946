"""Types that describe a model to the framework: graph, stages, options, memory needs, flags, routes, plans.

The package `stages` implements these types, and the other packages use them. The code in this package does not run
stages, choose devices or read configurations.
"""
