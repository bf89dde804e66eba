//! Weir from outside: its client against scripted servers, its commands as processes.

#[cfg(test)]
mod cli;
