//! The gRPC contracts of Weir, client and server side.
//!
//! `src/gen` is generated from the `.proto` files beside `src` and committed, so that building needs no
//! protobuf compiler; `WEIR_REGENERATE=1 cargo test -p weir-proto` writes it anew. These are wire types: they
//! are converted at the edge and go no further inside. This crate must never hold behaviour of its own.

/// `weir.admin`: what people and the operator ask of a running broker.
pub mod admin {
    /// Version 1.
    pub mod v1 {
        #![expect(
            unused_qualifications,
            clippy::all,
            clippy::allow_attributes_without_reason,
            reason = "generated code"
        )]
        include!("gen/weir.admin.v1.rs");
    }
}

/// `weir.store`: what brokers ask of the process that serves their store.
pub mod store {
    /// Version 1.
    pub mod v1 {
        #![expect(
            unused_qualifications,
            clippy::all,
            clippy::allow_attributes_without_reason,
            reason = "generated code"
        )]
        include!("gen/weir.store.v1.rs");
    }
}

/// `weir.peer`: what pods of one cluster say to each other.
pub mod peer {
    /// Version 1.
    pub mod v1 {
        #![expect(
            unused_qualifications,
            clippy::all,
            clippy::allow_attributes_without_reason,
            reason = "generated code"
        )]
        include!("gen/weir.peer.v1.rs");
    }
}

/// `externalscaler`: what KEDA asks of whoever knows how much work there is.
pub mod externalscaler {
    #![expect(
        unused_qualifications,
        clippy::all,
        clippy::allow_attributes_without_reason,
        reason = "generated code"
    )]
    include!("gen/externalscaler.rs");
}
