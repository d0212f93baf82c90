//! intseg
