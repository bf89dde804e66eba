//! Weir from outside: a broker in this process under a client that sends packets one by one, its own client
//! against scripted servers, its commands as processes. And what all tests together prove of the specifications.

#[cfg(test)]
mod authority;
#[cfg(test)]
mod broker;
#[cfg(test)]
mod cli;
#[cfg(test)]
mod conformance;
