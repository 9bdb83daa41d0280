//! TLS for HTTPS checks: rustls with the system's certificates, a CA file, or no verification.

use super::Failure;
use rustls_native_certs::load_native_certs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::{
    CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature,
};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use tokio_rustls::{TlsConnector, rustls};

/// What the configuration says about TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsOptions {
    /// The name to ask for and to verify; without one the Host header's, else the address.
    pub sni: Option<String>,
    /// Whether the certificate must be valid for the name.
    pub verify: bool,
    /// PEM file of the authorities to trust instead of the system's.
    pub ca: Option<PathBuf>,
}

/// Why TLS cannot be set up as configured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    #[error("cannot use `{path}` as CA file: {why}")]
    CaFile { path: PathBuf, why: String },
    #[error("`{0}` is no name for a TLS server")]
    Name(String),
    #[error("TLS: {0}")]
    Other(String),
}

/// TLS as configured, ready to connect. Clones share its session cache.
#[derive(Debug, Clone)]
pub struct Tls {
    options: TlsOptions,
    config: Arc<ClientConfig>,
}

impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        self.options == other.options
    }
}

impl Tls {
    /// Reads the CA file, or once per run the system's certificates.
    pub fn new(options: TlsOptions) -> Result<Self, TlsError> {
        if let Some(name) = &options.sni {
            server_name(name)?;
        }
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|why| TlsError::Other(why.to_string()))?;
        let config = if options.verify {
            let roots = match &options.ca {
                Some(path) => Arc::new(read_roots(path)?),
                None => system_roots(),
            };
            builder.with_root_certificates(roots).with_no_client_auth()
        } else {
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
                .with_no_client_auth()
        };
        Ok(Self {
            options,
            config: Arc::new(config),
        })
    }

    pub(super) async fn connect<S>(
        &self,
        stream: S,
        target: SocketAddr,
        host: Option<&str>,
    ) -> Result<TlsStream<S>, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = match self.options.sni.as_deref().or(host) {
            Some(name) => server_name(name).map_err(|why| Failure::NotChecked(why.to_string()))?,
            None => ServerName::from(target.ip()),
        };
        let connector = TlsConnector::from(self.config.clone());
        connector.connect(name, stream).await.map_err(failure)
    }
}

fn server_name(name: &str) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(name.to_owned()).map_err(|_| TlsError::Name(name.into()))
}

/// rustls speaks through io::Error; what it found is worth more than "other error".
fn failure(error: std::io::Error) -> Failure {
    let inner = error.get_ref();
    match inner.and_then(|e| e.downcast_ref::<rustls::Error>()) {
        Some(tls) => Failure::Answer(format!("TLS: {tls}")),
        None if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            Failure::Answer("connection closed during the TLS handshake".into())
        }
        None => error.into(),
    }
}

fn read_roots(path: &PathBuf) -> Result<RootCertStore, TlsError> {
    let bad = |why: String| TlsError::CaFile {
        path: path.clone(),
        why,
    };
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(path).map_err(|e| bad(e.to_string()))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|e| bad(e.to_string()))?;
        roots.add(certificate).map_err(|e| bad(e.to_string()))?;
    }
    if roots.is_empty() {
        return Err(bad("it holds no certificate in PEM form".into()));
    }
    Ok(roots)
}

/// A system without certificates trusts nobody, which each check then says.
fn system_roots() -> Arc<RootCertStore> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let read = || {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(load_native_certs().certs);
        Arc::new(roots)
    };
    ROOTS.get_or_init(read).clone()
}

/// Takes any certificate; that its key signed the handshake is still verified.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_used_is_said() {
        let options = TlsOptions {
            sni: None,
            verify: true,
            ca: Some("/nonexistent/ca.pem".into()),
        };
        let error = Tls::new(options.clone()).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/ca.pem"), "{error}");
        let empty = TlsOptions {
            ca: Some("/dev/null".into()),
            ..options.clone()
        };
        let error = Tls::new(empty).unwrap_err();
        assert!(error.to_string().contains("no certificate"), "{error}");
        let name = TlsOptions {
            sni: Some("not a name".into()),
            ..options
        };
        assert_eq!(
            Tls::new(name).unwrap_err(),
            TlsError::Name("not a name".into())
        );
    }
}
