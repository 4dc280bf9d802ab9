"""Named recipes, which hold the settings of whole runs: YAML files with a source for each value, and their reader.

It knows names and values, but neither what a setting does nor whether TRL accepts it.
"""
