//! intseg-runtime
