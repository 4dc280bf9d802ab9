"""Every model type of transformers, tiny: are the engine's norms those of a loop in float64?"""
