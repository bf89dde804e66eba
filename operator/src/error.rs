//! What can go wrong in a reconciliation, sorted by what to do about it. Knows no object.

/// Why a reconciliation did not come to its end. It is tried again, unless said otherwise.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The API server refused or did not answer.
    #[error("{doing}")]
    Kube {
        /// What was being done, as verb and object.
        doing: &'static str,
        /// What it said.
        #[source]
        source: kube::Error,
    },
    /// The object changed between being read and being written.
    #[error("the object has changed meanwhile")]
    Conflict,
    /// The cluster's definition of the kind is older than this operator.
    #[error(
        "the definition of {kind} in the cluster is older than this operator: update the CRDs (`kubectl apply \
         --server-side -f crds/` of this release, or the chart with `weir-crds.enabled=true`); the API server said: {said}"
    )]
    OldDefinitions {
        /// Of what.
        kind: &'static str,
        /// What the API server said.
        said: String,
    },
    /// This machine gives no random numbers.
    #[error("make a token: this machine gives no random numbers")]
    NoRandomness,
}

impl Error {
    /// Sorts what the API server said while `doing` something.
    pub(crate) fn kube(doing: &'static str) -> impl FnOnce(kube::Error) -> Self {
        move |source| match source {
            kube::Error::Api(status) if status.is_conflict() => Self::Conflict,
            source => Self::Kube { doing, source },
        }
    }

    /// Word for metrics.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Kube { .. } => "kube_error",
            Self::Conflict => "conflict",
            Self::OldDefinitions { .. } => "old_definitions",
            Self::NoRandomness => "no_randomness",
        }
    }
}
