"""From an event's particles and jets to labelled JetClass-II rows, whichever program made the event."""
