"""The half that serves clients: hydrates queries once and pushes differences."""
