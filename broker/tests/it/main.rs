//! Weir from outside: a broker in this process under a client that sends packets one by one, its own client
//! against scripted servers, its commands as processes.

#[cfg(test)]
mod broker;
#[cfg(test)]
mod cli;
