//! Shared by twinadm and its tests.
