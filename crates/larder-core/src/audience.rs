//! The audience of a value or response: all clients, the clients of one variant, or one user or tenant.

use std::sync::Arc;

/// The audience of a value that is built in a scope.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Audience {
    /// All clients, because the request does not carry credentials.
    #[default]
    Everyone,
    /// All clients that get the same variant, such as the same language.
    Variant(Arc<[u8]>),
    /// The user or tenant of this partition only.
    Partition(Arc<[u8]>),
    /// The request is authenticated, but no partition is known for its user, so nothing is shared.
    Unknown,
}

impl Audience {
    /// Returns the intersection of both audiences, or `Unknown` if either of them is `Unknown`.
    pub(crate) fn and(self, inner: Self) -> Self {
        let joined = |a: &[u8], b: &[u8]| {
            let length = (a.len() as u64).to_le_bytes();
            [&length, a, b].concat().into()
        };
        match (self, inner) {
            (Self::Unknown, _) | (_, Self::Unknown) => Self::Unknown,
            (Self::Everyone, one) | (one, Self::Everyone) => one,
            (Self::Variant(a), Self::Variant(b)) => Self::Variant(joined(&a, &b)),
            (Self::Partition(a) | Self::Variant(a), Self::Partition(b) | Self::Variant(b)) => {
                Self::Partition(joined(&a, &b))
            }
        }
    }
}
