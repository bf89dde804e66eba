//! Why clients are not let in: what each is told, and how it is counted. Texts hold nothing of what a client sent.

use weir_codec::ReasonCode;

use crate::metrics::AuthRefusal;

/// Why a client is not let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) reason: ReasonCode,
    pub(crate) text: &'static str,
    pub(crate) label: AuthRefusal,
}

impl Refused {
    pub(crate) const WRONG: Self = Self::new(
        ReasonCode::BadUserNameOrPassword,
        "user name or password is wrong",
        AuthRefusal::BadCredentials,
    );
    pub(crate) const OTHER_CERTIFICATE: Self = Self::new(
        ReasonCode::BadUserNameOrPassword,
        "the certificate is of another user: leave the user name out, or send the one in the certificate",
        AuthRefusal::BadCredentials,
    );
    pub(crate) const MISSING: Self = Self::new(
        ReasonCode::NotAuthorized,
        "say who you are: user name and password, a token or a certificate",
        AuthRefusal::Anonymous,
    );
    pub(crate) const THROTTLED: Self = Self::new(
        ReasonCode::ConnectionRateExceeded,
        "too many failures from this address or for this user; try again in a minute",
        AuthRefusal::Throttled,
    );
    pub(crate) const BUSY: Self =
        Self::new(ReasonCode::ServerBusy, "too many clients connect at once; try again", AuthRefusal::Busy);
    pub(crate) const UNKNOWN_METHOD: Self = Self::new(
        ReasonCode::BadAuthenticationMethod,
        "there is no such authentication method",
        AuthRefusal::BadMethod,
    );
    /// By an authentication method.
    pub(crate) const NOT_PROVED: Self =
        Self::new(ReasonCode::NotAuthorized, "authentication failed", AuthRefusal::BadCredentials);
    /// Not what the exchange asks for.
    pub(crate) const OUT_OF_TURN: Self = Self::new(
        ReasonCode::ProtocolError,
        "before CONNACK only AUTH of the same method may come",
        AuthRefusal::BadCredentials,
    );

    /// By access rules.
    pub(crate) const fn not_allowed(text: &'static str) -> Self {
        Self::new(ReasonCode::NotAuthorized, text, AuthRefusal::NotAuthorized)
    }

    const fn new(reason: ReasonCode, text: &'static str, label: AuthRefusal) -> Self {
        Self { reason, text, label }
    }
}
