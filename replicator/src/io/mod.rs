//! The only place with file descriptors.
