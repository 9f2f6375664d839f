//! What `#[lopt::network]` accepts, each file as strict as a crate of its own
//! could be. What it rejects is in `ui`.

mod accepted {
    mod forward;
    mod images;
    mod own_layer;
    mod parameters;
    mod without_imports;
}
