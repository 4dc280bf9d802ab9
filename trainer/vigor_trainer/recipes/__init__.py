"""Settings of whole runs under one name: YAML files, each value with its source, and how a name becomes settings.

It knows names and values, and neither what a setting does nor whether TRL takes it.
"""
