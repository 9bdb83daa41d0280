//! `NetState` as a whole: frames in, frames and events out, with a clock that jumps.

mod announcements;
mod answers;
mod malformed;
mod neighbours;
