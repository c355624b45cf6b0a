//! What a listener that speaks TLS shows of itself: certificates and the private key that belongs to them, from PEM.

use std::fmt;
use std::sync::Arc;

use tokio_rustls::rustls;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use zeroize::Zeroize;

/// The only protocol that is spoken inside. (RFC 7301)
const ALPN_HTTP_1_1: &[u8] = b"http/1.1";

/// A server's certificate with its private key: TLS 1.2 and 1.3, nothing asked of clients. `Debug` shows nothing of the
/// key.
#[derive(Clone)]
pub struct Certificate {
    /// The server's own, then those that vouch for it.
    chain: Vec<CertificateDer<'static>>,
    server: Arc<ServerConfig>,
}

/// Why there is no [`Certificate`]: in the text with the certificates, or in that with the key. Shows nothing of either.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CertificateError {
    /// Not PEM, or there is no certificate in it.
    NoCertificate,
    /// The library says what is wrong with the first of them.
    BadCertificate(String),
    /// Not PEM, or there is no private key in it.
    NoKey,
    /// The private key is encrypted, and there is nobody to ask for its password.
    EncryptedKey,
    /// A key of a kind that is not known, or one that is damaged.
    BadKey,
    /// The key is another certificate's.
    OtherKey,
}

impl fmt::Display for CertificateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCertificate => f.write_str("there is no certificate in it"),
            Self::BadCertificate(why) => write!(f, "the certificate cannot be used: {why}"),
            Self::NoKey => f.write_str("there is no private key in it"),
            Self::EncryptedKey => f.write_str("the private key is encrypted"),
            Self::BadKey => f.write_str("the private key is of a kind that is not known, or damaged"),
            Self::OtherKey => f.write_str("the private key is not the certificate's"),
        }
    }
}

impl std::error::Error for CertificateError {}

impl Certificate {
    /// Reads `chain`, the PEM text of the server's certificate and of those that vouch for it, in that order, and `key`,
    /// that of its private key: PKCS #8, PKCS #1 or SEC 1, not encrypted. RSA, ECDSA over P-256 and P-384, or Ed25519.
    ///
    /// # Errors
    /// What is wrong with which of the two.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, CertificateError> {
        let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<Vec<_>, _>>();
        let chain = chain.ok().filter(|chain| !chain.is_empty()).ok_or(CertificateError::NoCertificate)?;
        let mut key = PrivateKeyDer::from_pem_slice(key).map_err(|error| match error {
            pem::Error::NoItemsFound if is_encrypted(key) => CertificateError::EncryptedKey,
            _ => CertificateError::NoKey,
        })?;
        let signing_key = ring::sign::any_supported_type(&key);
        key.zeroize();
        let own = CertifiedKey::new(chain.clone(), signing_key.map_err(|_| CertificateError::BadKey)?);
        own.keys_match().map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => CertificateError::OtherKey,
            error => CertificateError::BadCertificate(error.to_string()),
        })?;
        let mut server = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider has a suite for each version")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(own)));
        server.alpn_protocols = vec![ALPN_HTTP_1_1.to_vec()];
        Ok(Self { chain, server: Arc::new(server) })
    }

    /// How connections are answered.
    pub(in crate::proxy) fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }
}

/// Whether it is a private key for which one has to know a password.
fn is_encrypted(pem: &[u8]) -> bool {
    const LABEL: &[u8] = b"-----BEGIN ENCRYPTED PRIVATE KEY-----";
    pem.windows(LABEL.len()).any(|window| window == LABEL)
}

/// Keys need no comparison: that of a certificate is the one that belongs to it.
impl PartialEq for Certificate {
    fn eq(&self, other: &Self) -> bool {
        self.chain == other.chain
    }
}

impl Eq for Certificate {}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Certificate({} in its chain)", self.chain.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAIN: &[u8] = include_bytes!("../../../tests/certificates/proxy.crt");
    const KEY: &[u8] = include_bytes!("../../../tests/certificates/proxy.key");
    const SEC1: &[u8] = include_bytes!("../../../tests/certificates/proxy-sec1.key");
    const ENCRYPTED: &[u8] = include_bytes!("../../../tests/certificates/proxy-encrypted.key");
    const OTHER_CHAIN: &[u8] = include_bytes!("../../../tests/certificates/other.crt");
    const OTHER_KEY: &[u8] = include_bytes!("../../../tests/certificates/other.key");
    const P521: &[u8] = include_bytes!("../../../tests/certificates/p521.key");

    #[test]
    fn a_key_and_the_certificate_that_it_belongs_to() {
        let certificate = Certificate::from_pem(CHAIN, KEY).unwrap();
        assert_eq!(certificate, Certificate::from_pem(CHAIN, SEC1).unwrap());
        let other = Certificate::from_pem(OTHER_CHAIN, OTHER_KEY).unwrap();
        assert_ne!(certificate, other);
        // The two may stand in one file, as some programs want it, with text between them.
        let both = [KEY, b"some words\n", CHAIN].concat();
        assert_eq!(certificate, Certificate::from_pem(&both, &both).unwrap());
        let longer = Certificate::from_pem(&[CHAIN, OTHER_CHAIN].concat(), KEY).unwrap();
        assert_ne!(certificate, longer);
        assert_eq!(format!("{longer:?}"), "Certificate(2 in its chain)");
    }

    #[test]
    fn what_is_wrong_with_which() {
        let check = |chain: &[u8], key: &[u8], expected: CertificateError| {
            assert_eq!(Certificate::from_pem(chain, key).unwrap_err(), expected);
        };
        check(b"", KEY, CertificateError::NoCertificate);
        check(KEY, KEY, CertificateError::NoCertificate);
        check(&CHAIN[..CHAIN.len() / 2], KEY, CertificateError::NoCertificate);
        check(CHAIN, b"", CertificateError::NoKey);
        check(CHAIN, CHAIN, CertificateError::NoKey);
        check(CHAIN, &KEY[..KEY.len() / 2], CertificateError::NoKey);
        check(CHAIN, ENCRYPTED, CertificateError::EncryptedKey);
        check(CHAIN, P521, CertificateError::BadKey);
        check(CHAIN, OTHER_KEY, CertificateError::OtherKey);
        let empty = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let error = Certificate::from_pem(empty, KEY).unwrap_err();
        assert!(matches!(error, CertificateError::BadCertificate(_)), "{error}");
    }
}
