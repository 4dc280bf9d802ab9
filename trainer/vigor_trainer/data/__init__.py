"""The data to train on: tasks, prompts as TRL hands them to the template, and whether an answer is correct.

It knows files, tokenizers and a sandbox for programs, and no service.
"""
