"""microflow: choreographed, event-driven microworkflows."""
