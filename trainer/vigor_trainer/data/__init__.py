"""The data to train on: tasks, prompts as TRL passes them to the chat template, and checks of answers.

It knows files, tokenizers and a sandbox for programs, but not the service.
"""
