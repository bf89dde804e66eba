//! Credentials and rules from outside: vectors, and a model that knows every topic.

#[cfg(test)]
mod jwt;
#[cfg(test)]
mod model;
#[cfg(test)]
mod rules;
