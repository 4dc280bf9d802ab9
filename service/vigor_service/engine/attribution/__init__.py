"""Attribution of a gradient norm to the positions of a sequence and to the parameters of a model.

It handles one sequence at a time.
"""
