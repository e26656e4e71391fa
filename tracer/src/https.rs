//! What is needed to ask servers by HTTPS.

use std::sync::Arc;

use ureq::tls::{Certificate, RootCerts, TlsConfig};

/// Servers are believed that this machine's certificates vouch for.
pub fn tls() -> TlsConfig {
    let found = rustls_native_certs::load_native_certs();
    found.errors.iter().for_each(|error| log::debug!("certificates: {error}"));
    let certificates: Vec<_> =
        found.certs.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect();
    TlsConfig::builder()
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .root_certs(RootCerts::Specific(Arc::new(certificates)))
        .build()
}
