//! The job's secret: who knows it may join (S-3).

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::error::{CommError, Result};

/// 32 random bytes, made by the launcher for one job. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 32]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(***)")
    }
}

impl Secret {
    /// A new secret from the operating system's generator.
    pub fn generate() -> Result<Self> {
        random().map(Self)
    }

    /// Reads what [`Secret::to_hex`] wrote. The error does not repeat the text.
    pub fn from_hex(text: &str) -> Result<Self> {
        let wrong = || CommError::Config("the job's secret must be 64 hexadecimal digits".into());
        let text = text.trim();
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        let mut bytes = [0; 32];
        for (index, byte) in bytes.iter_mut().enumerate() {
            let digits = text.get(2 * index..2 * index + 2).ok_or_else(wrong)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }

    /// 64 hexadecimal digits, for the environment of a rank.
    pub fn to_hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Another secret, for what `parts` say: whoever knows it can't tell this one from it.
    pub fn derive(&self, parts: &[&[u8]]) -> Self {
        let mut derived = [0; 32];
        for (byte, from) in derived.iter_mut().zip(self.prove(parts)) {
            *byte = from;
        }
        Self(derived)
    }

    /// HMAC-SHA256 over `parts`, each with its length, so that no two lists of parts look alike.
    fn mac(&self, parts: &[&[u8]]) -> Option<Hmac<Sha256>> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).ok()?;
        for part in parts {
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part);
        }
        Some(mac)
    }

    /// The proof of knowing the secret, over `parts`.
    pub(crate) fn prove(&self, parts: &[&[u8]]) -> Vec<u8> {
        self.mac(parts).map(|mac| mac.finalize().into_bytes().to_vec()).unwrap_or_default()
    }

    /// Whether `proof` is the proof over `parts`, compared in constant time.
    pub(crate) fn verify(&self, parts: &[&[u8]], proof: &[u8]) -> bool {
        self.mac(parts).is_some_and(|mac| mac.verify_slice(proof).is_ok())
    }
}

/// 32 bytes from the operating system's generator.
pub(crate) fn random() -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| CommError::system("random bytes", error))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_comes_back_and_debug_hides() {
        let secret = Secret::generate().unwrap();
        assert_eq!(Secret::from_hex(&secret.to_hex()).unwrap(), secret);
        assert_eq!(format!("{secret:?}"), "Secret(***)");
        for wrong in ["", "12", &"g".repeat(64), &"é".repeat(32), &"+1".repeat(32)] {
            assert!(Secret::from_hex(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn proofs_bind_every_part_and_the_secret() {
        let (secret, other) = (Secret::generate().unwrap(), Secret::generate().unwrap());
        let proof = secret.prove(&[b"ab", b"c"]);
        assert!(secret.verify(&[b"ab", b"c"], &proof));
        assert!(!secret.verify(&[b"a", b"bc"], &proof));
        assert!(!other.verify(&[b"ab", b"c"], &proof));
        assert!(!secret.verify(&[b"ab", b"c"], &[]));
        let derived = secret.derive(&[b"ab"]);
        assert!(derived != secret && derived != other.derive(&[b"ab"]));
        assert!(derived == secret.derive(&[b"ab"]) && derived != secret.derive(&[b"a", b"b"]));
    }
}
