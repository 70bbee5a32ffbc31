//! Nothing but a place for the benchmarks: their dependencies stay out of every test build.
