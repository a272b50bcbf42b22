//! Sealing, which encrypts and authenticates the entries of the second level, so that a party with access to the store
//! can neither read nor forge them.

use std::fmt;

use chacha20poly1305::{
    AeadCore as _, KeyInit as _, XChaCha20Poly1305, XNonce,
    aead::{Aead as _, OsRng, Payload},
};

/// The keys of a second level: one key that seals, and all keys that open.
///
/// The cipher is XChaCha20-Poly1305 with a random nonce. The key of the entry, including its namespace, is associated
/// data, so that an entry that was moved to another key does not open. To change keys, first let every process open
/// with the new key, then seal with it, and drop the old key after the maximum lifetime of an entry.
///
/// # Source
///
/// [RFC 8439](https://www.rfc-editor.org/rfc/rfc8439); draft-irtf-cfrg-xchacha for the long nonce.
#[doc(alias("encryption at rest", "AEAD"))]
#[derive(Clone)]
pub struct SealingKeys {
    seals: XChaCha20Poly1305,
    opens: Vec<XChaCha20Poly1305>,
}

impl SealingKeys {
    /// Creates keys with one key that seals and opens. It must be 256 bits that cannot be guessed.
    pub fn new(key: [u8; 32]) -> Self {
        let seals = XChaCha20Poly1305::new(&key.into());
        Self { opens: vec![seals.clone()], seals }
    }

    /// Adds a key that only opens, such as the previous or the next key.
    #[must_use]
    pub fn also_opens(mut self, key: [u8; 32]) -> Self {
        self.opens.push(XChaCha20Poly1305::new(&key.into()));
        self
    }

    /// Seals the content, and binds it to its associated data. The result is 40 bytes longer. `None` if the content is
    /// too long for the cipher.
    pub fn seal(&self, content: &[u8], associated: &[u8]) -> Option<Vec<u8>> {
        let nonce = XChaCha20Poly1305::generate_nonce(&mut OsRng);
        let payload = Payload { msg: content, aad: associated };
        let mut sealed = nonce.to_vec();
        sealed.extend(self.seals.encrypt(&nonce, payload).ok()?);
        Some(sealed)
    }

    /// Opens sealed content. `None` unless one of the keys sealed it with the same associated data.
    pub fn open(&self, sealed: &[u8], associated: &[u8]) -> Option<Vec<u8>> {
        let (nonce, content) = sealed.split_first_chunk::<24>()?;
        let nonce = XNonce::from_slice(nonce);
        let payload = || Payload { msg: content, aad: associated };
        self.opens.iter().find_map(|key| key.decrypt(nonce, payload()).ok())
    }
}

impl fmt::Debug for SealingKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealingKeys").field("opening", &self.opens.len()).finish_non_exhaustive()
    }
}
