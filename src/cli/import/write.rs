//! Writes an import as a commented configuration.

use super::{Import, Imported};
use crate::mgmt::config::service_to_toml;

/// The text; services stand in the order of the input.
pub fn to_toml(source: &str, import: &Import) -> String {
    let mut text = format!(
        "# Imported from {source}. Complete the port below, then try it: evenkeel check --config FILE\n"
    );
    if import.notes.is_empty() {
        text += "# Everything in the input has an equivalent.\n";
    } else {
        text += "# These have no equivalent, or not the whole one:\n";
        for note in &import.notes {
            text += &format!("#   {}: {}\n", note.place.line_of_file(), note.text);
        }
    }
    text += PORT;
    for imported in &import.services {
        text += &service(imported);
    }
    text
}

/// The input does not say which device packets come by.
const PORT: &str = "
[[port]]
name = \"wan\"
device = \"0000:01:00.0\"       # the PCI address of the network card, or any DPDK device
addresses = []                # the balancer's own address and subnet, such as [\"192.0.2.2/24\"]
# check_address = \"192.0.2.3\"  # evenkeel's alone: where health checks come from
# gateway = \"192.0.2.1\"
";

fn service(imported: &Imported) -> String {
    let text = service_to_toml(&imported.service);
    format!("\n# From {}\n{text}", imported.place.line_of_file())
}
