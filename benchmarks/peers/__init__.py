"""The peers' programs. They run in an environment of their own and import nothing of Tidemill but their neighbours here."""
