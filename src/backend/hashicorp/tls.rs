//! TLS: the trusted authorities, the client certificate, and what errors about them mean.

use std::io;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};
use zeroize::Zeroizing;

use crate::settings::Environment;

use super::variables::{SWITCH, parsed, read_file};

/// The configuration for the HTTP library. Without TLS, the settings are only checked to be
/// readable and complete.
///
/// # Errors
///
/// A text that names what is unusable, without its content.
pub(super) fn config(environment: &Environment, is_https: bool) -> Result<TlsConfig, String> {
    let file = |name| environment.setting(name).map(|path| read_file(name, path.as_ref()));
    let authorities = match environment.setting("VAULT_CACERT_BYTES") {
        Some(pem) => Some(pem.to_owned().into()),
        None => file("VAULT_CACERT").transpose()?,
    };
    let chain = file("VAULT_CLIENT_CERT").transpose()?;
    let key = file("VAULT_CLIENT_KEY").transpose()?;
    if chain.is_some() != key.is_some() {
        return Err("VAULT_CLIENT_CERT and VAULT_CLIENT_KEY go together; set both".to_owned());
    }
    let skip_verify = parsed(environment, "VAULT_SKIP_VERIFY", SWITCH, false)?;
    if !is_https {
        return Ok(TlsConfig::default());
    }
    let roots = if skip_verify { Vec::new() } else { roots(authorities)? };
    let identity =
        chain.zip(key).map(|(chain, key)| client_certificate(&chain, &key)).transpose()?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(TlsConfig::builder()
        .unversioned_rustls_crypto_provider(provider)
        .disable_verification(skip_verify)
        .root_certs(RootCerts::from(for_ureq(&roots)))
        .client_cert(identity)
        .build())
}

/// The trusted authorities: those given, else the system's.
fn roots(
    authorities: Option<Zeroizing<String>>,
) -> Result<Vec<CertificateDer<'static>>, &'static str> {
    if let Some(pem) = authorities {
        return certificates(&pem)
            .ok_or("the certificates of the authorities are not in PEM (BEGIN CERTIFICATE)");
    }
    let roots = rustls_native_certs::load_native_certs().certs;
    if roots.is_empty() {
        return Err("the system has no trusted certificates; install its package \
                    (ca-certificates), or set VAULT_CACERT");
    }
    Ok(roots)
}

fn client_certificate(chain: &str, key: &str) -> Result<ClientCert, String> {
    const NO_KEY: &str = "the client key is not in PEM (BEGIN PRIVATE KEY)";

    let chain =
        certificates(chain).ok_or("the client certificate is not in PEM (BEGIN CERTIFICATE)")?;
    // ureq panics when certificate and key do not match, so that is checked here.
    let parsed = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|_| NO_KEY)?;
    let provider = rustls::crypto::ring::default_provider();
    CertifiedKey::from_der(chain.clone(), parsed, &provider)
        .map_err(|_| "the client certificate and its key do not belong together")?;
    let key = PrivateKey::from_pem(key.as_bytes()).map_err(|_| NO_KEY)?;
    Ok(ClientCert::new_with_certs(&for_ureq(&chain), key))
}

/// The certificates in the text, or `None` if there are none, or a broken one.
fn certificates(pem: &str) -> Option<Vec<CertificateDer<'static>>> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    found.ok().filter(|found| !found.is_empty())
}

fn for_ureq(certificates: &[CertificateDer<'_>]) -> Vec<Certificate<'static>> {
    certificates.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect()
}

/// Explains an error about certificates, and returns `None` for any other. With such an error,
/// no request has been sent.
pub(super) fn tls_failure(error: &io::Error) -> Option<String> {
    use rustls::{AlertDescription, Error};

    match rustls_error(error)? {
        Error::InvalidCertificate(reason) => Some(format!(
            "its certificate is not accepted ({reason}); is its authority in VAULT_CACERT, and \
             VAULT_ADDR its name?"
        )),
        Error::AlertReceived(
            AlertDescription::CertificateRequired | AlertDescription::BadCertificate,
        ) => Some(
            "it requires another client certificate; set VAULT_CLIENT_CERT and VAULT_CLIENT_KEY"
                .to_owned(),
        ),
        _ => None,
    }
}

/// The TLS error inside an I/O error.
fn rustls_error(error: &io::Error) -> Option<&rustls::Error> {
    let inner = error.get_ref()?;
    inner.downcast_ref().or_else(|| rustls_error(inner.source()?.downcast_ref()?))
}
