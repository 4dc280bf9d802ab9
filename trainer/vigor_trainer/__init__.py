"""A lightweight trainer on TRL whose reward is the VIGOR scoring service."""
