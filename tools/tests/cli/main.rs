//! The real `twinadm`, where no daemon answers and against one that answers from a script.

mod metadata;
mod no_daemon;
mod support;
mod volumes;
mod with_daemon;
