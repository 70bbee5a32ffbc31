//! What the control socket speaks: requests, the status snapshot, events.
