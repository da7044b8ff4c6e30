"""Simulated jets: Pythia 8, a parametrised detector and FastJet, in the JetClass-II layout. Needs the [sim] extra."""
