"""The data to train on: tasks, prompts as TRL hands them to the template, and prompts too long to score.

It knows files and tokenizers, and no service.
"""
