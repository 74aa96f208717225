/* Empty on purpose: bcc brings its own. */
