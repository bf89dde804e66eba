//! The lists of statements. Know nothing of tests.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Version {
    V5,
    V311,
}

impl Version {
    pub(super) const ALL: [Self; 2] = [Self::V5, Self::V311];

    /// As markers name it.
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text {
            "v5" => Some(Self::V5),
            "v311" => Some(Self::V311),
            _ => None,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V5 => "MQTT 5.0",
            Self::V311 => "MQTT 3.1.1",
        })
    }
}

/// `3.1.2-4`: section, and number in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Id {
    section: [u8; 3],
    /// `4.2-1` of MQTT 5.0 stands in a section of two numbers.
    short: bool,
    number: u8,
}

impl Id {
    /// The two numbers that name what it is about: a packet in chapter 3.
    pub(super) fn topic(self) -> (u8, u8) {
        (self.section[0], self.section[1])
    }
}

impl FromStr for Id {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no statement id, which looks like 3.1.2-4");
        let (section, number) = text.split_once('-').ok_or_else(wrong)?;
        let parts: Vec<u8> =
            section.split('.').map(|part| part.parse().map_err(|_| wrong())).collect::<Result<_, _>>()?;
        let (section, short) = match *parts {
            [a, b] => ([a, b, 0], true),
            [a, b, c] => ([a, b, c], false),
            _ => return Err(wrong()),
        };
        Ok(Self { section, short, number: number.parse().map_err(|_| wrong())? })
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c] = self.section;
        if self.short {
            write!(f, "{a}.{b}-{}", self.number)
        } else {
            write!(f, "{a}.{b}.{c}-{}", self.number)
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Statement {
    pub(super) says: String,
    not_server: Option<String>,
    deviates: Option<String>,
    /// Where it does not hold, although it has tests.
    except: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State<'a> {
    /// If there are tests; except in this case.
    Holds(Option<&'a str>),
    NotServer(&'a str),
    Deviates(&'a str),
}

impl Statement {
    pub(super) fn state(&self) -> Result<State<'_>, &'static str> {
        match (&self.not_server, &self.deviates, &self.except) {
            (None, None, except) => Ok(State::Holds(except.as_deref())),
            (Some(why), None, None) => Ok(State::NotServer(why)),
            (None, Some(why), None) => Ok(State::Deviates(why)),
            _ => Err("more than one of not_server, deviates, except"),
        }
    }
}

/// The statements of a version, in the order of the specification.
pub(super) fn of(version: Version) -> BTreeMap<Id, Statement> {
    let text = match version {
        Version::V5 => include_str!("statements_v5.toml"),
        Version::V311 => include_str!("statements_v311.toml"),
    };
    let raw: BTreeMap<String, Statement> = toml::from_str(text).unwrap();
    raw.into_iter().map(|(id, statement)| (id.parse().unwrap(), statement)).collect()
}

#[test]
fn the_lists_are_complete() {
    // How many the appendices B of the specifications list.
    assert_eq!((of(Version::V5).len(), of(Version::V311).len()), (251, 141));
}

#[test]
fn ids_are_displayed_as_they_were() {
    for version in Version::ALL {
        for id in of(version).keys() {
            assert_eq!(id.to_string().parse(), Ok(*id));
        }
    }
    for text in ["3.1.2", "3-1", "3.1.2.4-1", "a.1.2-3", "3.1.2-"] {
        assert!(text.parse::<Id>().is_err(), "{text}");
    }
}
